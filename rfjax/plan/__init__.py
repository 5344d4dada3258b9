# SPDX-License-Identifier: Apache-2.0
"""Plans: what the TPU compiler says about a config, before anything is booked.

topology, compile               chips and slices; the train step compiled for them
hlo, accounting, collectives    the compiled program as rows: cycles, bytes, messages
kernels, traced_flops           what the program does not tell: FLOPs of kernels, in all
estimate, step, report          rows to a step time; the plan as text, JSON and picture
search                          meshes, batches and remat policies, one after the other

docs/tpu_step.md tells which change to the models bought what on which chip, and where
the rest of the time goes.
"""
