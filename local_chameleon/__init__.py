# SPDX-License-Identifier: Apache-2.0
"""A Chameleon of one's own, on loopback, for the demo and the tests."""
