"""Everything that only training needs: options, data, the start of a model, the loop, and memory."""
