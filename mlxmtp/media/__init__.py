"""Files with images and audio in, pixels and samples out; knows no model and no terminal."""
