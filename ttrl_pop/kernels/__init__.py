"""The same numbers up to rounding, faster: layers, products and memory. What is computed is decided elsewhere.

Without `install` every result stays what it is but for rounding and time. To add a faster layer, write its function and
gradient in `fused`, and in `install` how such a layer is known by what it computes; a library for products is a
`LaidOutWeight` in `matmul`.
"""
