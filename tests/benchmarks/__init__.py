# SPDX-License-Identifier: Apache-2.0
"""The figures of ``docs/performance.md``: each with what it is measured against, both in one run."""
