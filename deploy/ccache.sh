#!/bin/sh
# The compiler launcher of CMakePresets.json: ccache so that objects of another clone and precompiled
# headers count. What is set already stays.
export CCACHE_BASEDIR="${CCACHE_BASEDIR:-${0%/*/*}}"
export CCACHE_NOHASHDIR="${CCACHE_NOHASHDIR:-1}"
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS:-pch_defines,time_macros}"
exec ccache "$@"
