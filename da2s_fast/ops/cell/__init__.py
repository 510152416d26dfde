"""The cell: every edge, every candidate, preprocessing and node sums as one operation.

So far its staged reference and its costs, which the kernels are going to be written from:

- `plan`: the cell as data, edges grouped into bundles;
- `reference`: forward and backward in stages, with `bundle`, `norm` and `convolutions`;
- `cost`: least operations and bytes of every stage.
"""
