"""The recipes; `common` has every key there is."""
