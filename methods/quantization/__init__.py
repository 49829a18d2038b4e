"""The one quantizer every method uses: integer grids, fake quantization, conversion, policies, costs."""
