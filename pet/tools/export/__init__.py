"""A student for use without pet: transformers folder or ONNX, with a model card."""
