# SPDX-License-Identifier: Apache-2.0
"""`rfjax bench`: times on this machine, beside those of a peer."""
