"""HTTP in front of one model: the released VLA-R1 server's API, a typed one, and OpenAI's chat completions."""
