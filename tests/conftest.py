# SPDX-License-Identifier: Apache-2.0
"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# Whoever runs the tests may have set up the tools for work of their own.
for _name in [name for name in os.environ if name.startswith(("SAGE_", "OS_"))]:
    del os.environ[_name]

# How long a machine takes for an example is no promise of ours.
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run, so that what a change breaks is that change's; `make test-full` searches for others.
settings.register_profile("settled", settings.get_profile("searching"), derandomize=True)
settings.load_profile("settled")
