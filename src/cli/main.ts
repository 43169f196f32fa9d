#!/usr/bin/env -S -u NODE_EXTRA_CA_CERTS node
/**
 * Starts the command, whose code is in bundles (scripts/build.mjs). Nothing here makes TLS connections, and Node reads the
 * certificates of NODE_EXTRA_CA_CERTS at every start, which takes longer than all else.
 */
import { createRequire } from 'node:module'

const { loadBundle } = createRequire(import.meta.url)('../cached-code.cjs')

/** The bundles of commands; all others are in `command`. */
const BUNDLES = new Map([
  ['mount', 'mounting'],
  ['umount', 'unmounting'],
  ['compare', 'reading'],
  ['convert', 'reading'],
  ['info', 'reading'],
  ['map', 'reading'],
])

const [, , name, ...args] = process.argv
const asksForHelp = args.includes('--help') || args.includes('-h')
loadBundle((!asksForHelp && BUNDLES.get(name ?? '')) || 'command').start()
