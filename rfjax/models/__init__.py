# SPDX-License-Identifier: Apache-2.0
"""The MMDiT and its parts."""
