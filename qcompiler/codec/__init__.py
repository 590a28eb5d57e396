"""How numbers are stored in bytes: exact inverses side by side, arrays in and arrays out, no file format."""
