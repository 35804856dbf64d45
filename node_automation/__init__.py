# SPDX-License-Identifier: Apache-2.0
"""Leases, servers, roles and experiments on the testbed's sites."""
