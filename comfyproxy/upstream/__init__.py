"""HTTP and websocket towards one backend."""
