"""Real vLLM servers: started, measured, calibrated on, replayed against."""
