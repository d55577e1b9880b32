"""What a run tells: terminal, HTML page, hardware figures."""
