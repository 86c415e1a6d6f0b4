"""Published figures of rounds, brought to where data scientists look at experiments: MLflow, TensorBoard."""
