"""The shipped small model before its two stages: a Qwen2.5-VL from nothing, which stands where the released 3B does."""
