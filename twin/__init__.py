"""The digital twin of one vLLM server with LoRA adapters: a compiled simulator, and what is derived from it."""
