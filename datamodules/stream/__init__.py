"""The stream of training: which sample stands at which position, how it is read and resumed."""
