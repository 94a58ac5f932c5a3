"""EfficientNet-Lite0: network, ONNX graph and registered encoders."""
