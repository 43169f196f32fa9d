/** Asks the kernel which version of the FUSE protocol it speaks, by a file system that is mounted nowhere (fsopen(2)). */
import fs from 'node:fs'
import { closeFile } from './libc.js'
import { loadLibc } from './native.js'

/** These numbers are the same on all machines (asm-generic/unistd.h). */
const SYS_FSOPEN = 430
const SYS_FSCONFIG = 431
const FSCONFIG_SET_STRING = 1
const FSCONFIG_CMD_CREATE = 6
const FSOPEN_CLOEXEC = 1
/** Where the version stands in the first request, INIT, and how long a buffer for requests has to be (FUSE_MIN_READ_BUFFER). */
const MAJOR_AT = 40
const MINOR_AT = 44
const READ_BYTES = 64 * 1024

/** Returns the version, such as "7.39"; undefined if this user may not mount, or the kernel is older than Linux 5.2. */
export function fuseVersion(): string | undefined {
  const libc = loadLibc()
  const fsopen = libc.func('long syscall(long number, const char *name, uint32_t flags)')
  const fsconfig = libc.func(
    'long syscall(long number, int fd, uint32_t command, const char *key, const char *value, int aux)',
  )
  let device: number
  try {
    device = fs.openSync('/dev/fuse', 'r+')
  } catch {
    return undefined
  }
  const context = Number(fsopen(SYS_FSOPEN, 'fuse', FSOPEN_CLOEXEC))
  try {
    if (context < 0) return undefined
    const settings = {
      fd: String(device),
      rootmode: '40000',
      user_id: String(process.getuid?.()),
      group_id: String(process.getgid?.()),
    }
    for (const [key, value] of Object.entries(settings)) {
      if (Number(fsconfig(SYS_FSCONFIG, context, FSCONFIG_SET_STRING, key, value, 0)) < 0) {
        return undefined
      }
    }
    if (Number(fsconfig(SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, null, null, 0)) < 0) {
      return undefined
    }
    const request = Buffer.alloc(READ_BYTES)
    if (fs.readSync(device, request) < MINOR_AT + 4) return undefined
    return `${request.readUInt32LE(MAJOR_AT)}.${request.readUInt32LE(MINOR_AT)}`
  } catch {
    return undefined
  } finally {
    if (context >= 0) closeFile(context)
    fs.closeSync(device)
  }
}
