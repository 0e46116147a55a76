"""The loops that move jobs: submission, dispatch, relay, settling, probing."""
