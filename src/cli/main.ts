#!/usr/bin/env node
/** Starts the command, whose code is in bundles (scripts/build.mjs). */
import { createRequire } from 'node:module'

const { loadBundle } = createRequire(import.meta.url)('../cached-code.cjs')
const [, , name, ...args] = process.argv
const asksForHelp = args.includes('--help') || args.includes('-h')
loadBundle(name === 'umount' && !asksForHelp ? 'unmounting' : 'command').start()
