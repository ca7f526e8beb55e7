"""Backbones to one ONNX file that is compared with torch before it is written."""
