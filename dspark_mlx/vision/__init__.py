"""Images in prompts: mlx-vlm's processor and encoder make embeddings, the target reads them."""
