"""microdit"""
