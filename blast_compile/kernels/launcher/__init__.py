"""The launcher in C++ that stands under the ops."""
