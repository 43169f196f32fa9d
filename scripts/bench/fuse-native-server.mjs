/**
 * A minimal server on the npm package fuse-native: it answers reads from memory. servers.mjs starts it with the folder where
 * the package is installed, a raw file and a mount point.
 */
import fs from 'node:fs'
import { createRequire } from 'node:module'

const [folder, rawFile, mountPoint] = process.argv.slice(2)
const Fuse = createRequire(`${folder}/package.json`)('fuse-native')

const NAME = 'disk.raw'
const CHUNK = 2 ** 28 // one Buffer can't be as large as a disk
const sizeBytes = fs.statSync(rawFile).size
const chunks = []
const fd = fs.openSync(rawFile, 'r')
for (let at = 0; at < sizeBytes; at += CHUNK) {
  const chunk = Buffer.alloc(Math.min(CHUNK, sizeBytes - at))
  fs.readSync(fd, chunk, 0, chunk.length, at)
  chunks.push(chunk)
}

const stat = (mode, size) => {
  const time = new Date(0)
  return { mtime: time, atime: time, ctime: time, nlink: 1, size, mode, uid: 0, gid: 0 }
}

const operations = {
  readdir: (_path, done) => done(0, [NAME]),
  getattr(path, done) {
    if (path === '/') return done(0, stat(0o40755, 4096))
    if (path === `/${NAME}`) return done(0, stat(0o100444, sizeBytes))
    done(Fuse.ENOENT)
  },
  open: (_path, _flags, done) => done(0, 1),
  release: (_path, _handle, done) => done(0),
  read(_path, _handle, target, length, offset, done) {
    const end = Math.min(length, sizeBytes - offset)
    let copied = 0
    while (copied < end) {
      const at = offset + copied
      const from = at % CHUNK
      copied += chunks[Math.floor(at / CHUNK)].copy(target, copied, from, from + end - copied)
    }
    done(copied)
  },
}

new Fuse(mountPoint, operations, { force: true }).mount(error => {
  if (!error) return
  console.error(error.message)
  process.exit(1)
})
