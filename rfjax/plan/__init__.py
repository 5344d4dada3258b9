# SPDX-License-Identifier: Apache-2.0
"""Plans: what the TPU compiler says about a config, before anything is booked.

What bought what, d = 38 at 256 px on v5p:4x4x4 by the formula of `plan.estimate`
(share of peak with collectives hidden / exposed; compiler-estimated, not measured,
+-10 %; exposed: all at 180 GB/s a chip, nothing overlapped):

| step | examples a chip | hidden | exposed |
| --- | --- | --- | --- |
| XLA attention, remat full | 16 | 40.6 % | - |
| XLA attention, remat dots | 16 | 46.4 % | - |
| attention fused, remat linear, mesh data=4 fsdp=16 | 16 | 58.9 % | 36.9 % |
| the same, GELU's derivative written out | 64 | 60.8 % | 52.0 % |
| the same, bfloat16 products without joining batch and tokens | 64 | 63.4 % | 54.0 % |

- The fused kernel takes the softmax out of the matrix products (29 % of the forward
  cycles, at 1.5 times their limit) and needs no joined or transposed query, key, value.
- fsdp=16 gives shards of 152 rows, which fill TPU tiles; 64 gives 38, and zero-padded
  copies.
- Collectives depend on the weights alone, so a larger batch a chip pays them off.

- 154 text tokens lie in 160 rows of tiles, so joining batch and token dims copies them.

Where the step of the last row goes (1,494 ms hidden, 947 ms at peak): matrix products
1,246 (limit 921; the rest is elementwise work inside them), attention kernels 100,
copies 76 (nearly all of them saving and fetching what the scan keeps for the backward
pass), elementwise 48, prefetch 14, reduces 9. Collectives take 260 ms if none is
hidden: this compiler makes none of them asynchronous on v5p. 70.5 of 102.8 GB are used.
"""
