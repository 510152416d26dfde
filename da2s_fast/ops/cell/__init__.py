"""The cell: every edge, every candidate, preprocessing and node sums as one operation.

- `function`: `cell` itself, with its `checks`; `operator`: what torch knows of it, `autograd`: its
  derivative; `memory`: whether to keep or to compute again what backward needs;
- `plan`: the cell as data, edges grouped into bundles; `operations`: what it knows by name;
- `reference`: forward and backward in stages, the explanation of the kernels, with `bundle`, `norm`
  and `convolutions`;
- `cost`: least operations and bytes of every stage.
"""
