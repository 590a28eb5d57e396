"""A translation benchmark: a small Transformer from English to German, trained, exported, compiled and scored."""
