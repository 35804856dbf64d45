# SPDX-License-Identifier: Apache-2.0
"""A variant becomes a root tree, a disk, a checked image, a published image."""
