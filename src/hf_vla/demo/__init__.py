"""The demo: a Gradio app that shows a policy think and move."""
