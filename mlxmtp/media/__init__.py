"""Files with pictures and sounds in, pixels and samples out; knows no model and no terminal."""
