"""What the subcommands of `comfyproxy` do."""
