# SPDX-License-Identifier: Apache-2.0
"""The Waggle node and the Beehive of a Sage image; knows nothing of OpenStack."""
