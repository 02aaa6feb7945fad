"""
The options of `train_tier.py`: their fields, the checks and defaults of their values, and recipes.

The modules with the fields (task, model, data, search, training_fields) import neither torch nor transformers, so that
--help answers at once.
"""
