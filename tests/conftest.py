# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

from hypothesis import HealthCheck, settings

# How long a machine takes for an example is no promise of ours.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
