/**
 * Loads koffi, the native module that makes all system calls, and the C library. If one of them is missing or does not
 * fit this machine, it throws an error that the user sees as one line.
 */
import { createRequire } from 'node:module'
import type { LibraryHandle } from 'koffi'
import { MountError } from '../errors.js'
import { installHint, missingPackage } from '../packages.js'

type Koffi = typeof import('koffi')['default']

export const koffi: Koffi = loadKoffi()

/**
 * Returns the system's C library. Throws MountError if it is not glibc.
 */
export function loadLibc(): { func(signature: string): ReturnType<LibraryHandle['func']> } {
  const library = orNoGlibc(() => koffi.load('libc.so.6'))
  return { func: signature => orNoGlibc(() => library.func(signature)) }
}

function loadKoffi(): Koffi {
  const require = createRequire(import.meta.url)
  try {
    // koffi's own loader takes three times as long as the rest of loading it.
    return require(`@koromix/koffi-linux-${process.arch}/linux_${process.arch}/koffi.node`)
  } catch {
    // It knows all places, and says what is wrong.
  }
  try {
    return require('koffi').default
  } catch (error) {
    if (missingPackage(error) === 'koffi') throw error
    const line = firstLine(error)
    const why = line.startsWith('Cannot find the native') ? 'it has no binary there' : line
    throw new MountError(
      `the package koffi, which vimgfs needs, cannot be loaded on this machine (${machine()}): ${why}; ${installHint(true)}`,
    )
  }
}

function orNoGlibc<T>(load: () => T): T {
  try {
    return load()
  } catch (error) {
    throw new MountError(
      `vimgfs needs glibc, the C library of most Linux systems, and cannot call it here (${machine()}): ${firstLine(error)}; use a Node that is built for glibc, or run vimgfs in a system or a container that has it (not Alpine)`,
    )
  }
}

function machine(): string {
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
  const libc = header.glibcVersionRuntime === undefined ? 'no glibc' : 'glibc'
  return `${process.platform} ${process.arch}, ${libc}`
}

function firstLine(error: unknown): string {
  return (error as Error).message.split('\n', 1)[0] as string
}
