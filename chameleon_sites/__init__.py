# SPDX-License-Identifier: Apache-2.0
"""The testbed's sites and how to talk to them."""
