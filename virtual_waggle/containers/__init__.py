# SPDX-License-Identifier: Apache-2.0
"""Container images made of the distribution's packages, kept as an OCI image layout, given to Docker when needed."""
