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
| the same, 32 MiB of scoped VMEM; attention saved as [B, S, D] | 64 | 75.2 % | 62.4 % |
| the same, LayerNorm's derivative written out | 64 | 75.5 % | 62.5 % |

- The fused kernel takes the softmax out of the matrix products (29 % of the forward
  cycles, at 1.5 times their limit) and needs no joined or transposed query, key, value.
- fsdp=16 gives shards of 152 rows, which fill TPU tiles; 64 gives 38, and zero-padded
  copies.
- Collectives depend on the weights alone, so a larger batch a chip pays them off.
- 154 text tokens lie in 160 rows of tiles, so joining batch and token dims copies them.
- By default an instruction may hold 16 MiB of VMEM. A product with a residual, a norm
  or a second result around it shares that, and is cut into blocks too small for the
  matrix unit: 1,246 ms of products against a limit of 921. With 32 MiB they take
  1,030 (`parallel.compiler`; training uses the same option). 64 MiB more than doubles
  the compile time and was given up before it ended.
- Attention saved with heads apart ([B, S, N, 64]) was copied on the way in and out.

Tried without gain: making norms and GELU arrays of their own before the products that
read them (optimization_barrier). The compiler's cycles of a product do not depend on
the elementwise work fused into it, only on its blocks, so only bytes were added: 28 ms
for one stream. It also means that the formula charges nothing for that work; it is
hidden behind the matrix unit only if the vector unit keeps up.

Ruled out by arithmetic, not compiled: saved activations in host memory (remat with
offload). 53 GB a chip and step each way, to save what `full` costs, 0.3 s, would need
some 350 GB/s of host link a chip; it has a few tens. So there is no such policy.

Already so: weights are gathered, and gradients summed, in bfloat16, since the cast is
done on the shard; optimizer and master weights are float32.

Where the step of the last row goes (1,254 ms hidden, 947 ms at peak): matrix products
1,030 (limit 921), attention kernels 100 (30 at peak; assumed at 0.3 of it), copies 63
(saving and fetching what the scan keeps for the backward pass), elementwise 52, reduces
6, prefetch 3. Collectives take 260 ms if none is hidden: this compiler makes none of
them asynchronous on v5p.

Growth. At one width the step is linear in the blocks: 34 ms and 33 ms for each scanned
one at d = 38 (78 and 62 million cycles of the compiler), for there is one loop body.
Across the sizes width grows with depth, so its products grow with d^3. More copies by
`data` change only the all-reduce of shards: d = 15 with 64 examples a chip goes from
49.5 to 49.2 % of peak, exposed, between 16 and 256 chips of v5p (hidden: 57.0 % on
both). d = 38 on two slices, 2*v5p:4x4x4: 74.1 / 58.3 %; 0.5 GB a chip and step cross
the data-centre network, 77 ms if nothing hides them.

Other chips, d = 24; a batch that is small for its chip pays for the weights that are
fetched ahead into VMEM (at d = 18 on v5e with 64 examples they take 4 of 419 ms):

- v5e:16x16, 16 examples a chip: 53.7 / 43.9 %. Of 262 ms: products 150 (limit 135),
  prefetch to VMEM 57, attention 23, copies 17, elementwise 12, reduces 2.
- The same, 32 examples a chip: 57.9 / 51.9 %, 14.1 of 16.9 GB. Of 486 ms: products 300
  (limit 269), prefetch 72: much of it grows with the weights, not with the batch.
- v6e:8x8, 64 examples a chip: 38.9 / 32.2 %; 55 % (220 ms) was not reached. Of 310 ms:
  products 213 (limit 116), elementwise 37, copies 34, attention 20, reduces 4.

What v6e loses. It does 560 FLOPs in the time of a byte (v5p 166), so what is not a
product takes 97 ms, beside the 121 ms of the whole step at peak:

| class | ms | limit | why |
| --- | --- | --- | --- |
| products, forward, two results | 77 | 38 | the second is kept for the backward pass |
| products, backward, three or more large inputs | 57 | 29 | GELU's slope, gates |
| products, backward, others | 76 | 48 | norms computed again on the way in |
| products, other | 3 | 1 | |
| elementwise | 37 | 31 | sums for the modulations, three gradients into one |
| copies | 34 | 29 | the scan fetches what it kept, 23 times |
| attention | 20 | 6 | assumed at 0.3 of peak; HBM alone would take 15 |

The compiler's cycles of a product on this chip rise with each result written, as if
nothing overlapped the write: alone, D x D is at 1.42 of its limit, D x 4 D at 1.33
(1.76 with a second result), 4 D x D at 1.13, gradients of weights at 1.13 to 1.18. All
products at that would take 147 ms, and the step be at 49 % of peak. Tried, all with 64
examples: 48 MiB of scoped VMEM 38.4 %, 64 MiB 32.6 % (products 185 ms, but prefetch
100); a barrier between product and GELU 38.5 %; queries, keys and values computed again
instead of kept, norms as arrays of their own, 36.8 %. Four blocks unrolled need no
copies and 13 % less time a block, but compile in three to four times as long.

At 1024 px (v5p:4x4x4, 6 examples a chip) splash attention takes 1,129 of 2,594 ms at
d = 38 (44.7 / 41.0 %), products 980, elementwise 253, copies 196; at d = 15 (30.5 /
29.1 %) 175 of 315, products 68. So much of the step is the assumption that 64-wide
heads run at 0.3 of peak.
"""
