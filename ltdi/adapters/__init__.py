"""Generated LoRA adapters: text tasks, their runs, and the generator that learns from them."""
