"""Where jobs last."""
