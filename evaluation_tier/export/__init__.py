"""`tier-export`: a model as graphs of ONNX or OpenVINO, and how much that changes its scores and maps."""
