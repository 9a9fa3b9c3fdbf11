"""Tasks for training that are made by combination: tools, forms, edits, pictures and sounds."""
