"""What one rank of a trial does. Plain PyTorch: no Ray, no Optuna, no MLflow."""
