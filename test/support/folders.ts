/** Folders that are held as an opened image's are. */
import fs from 'node:fs'
import path from 'node:path'
import { closeFolders, type Folder, holdFolders } from '../../src/io/folders.js'

/** Runs `act` with `folders` held. */
export function holding<T>(folders: readonly string[], act: (held: readonly Folder[]) => T): T {
  const held = holdFolders(folders)
  try {
    return act(held)
  } finally {
    closeFolders(held)
  }
}

/** The folders of `image` that are there: that of its name, and that of the file where the name is a link. */
export function foldersOf(image: string): string[] {
  const real = fs.existsSync(image) ? fs.realpathSync(image) : image
  const folders = [image, real].map(file => path.dirname(file))
  return [...new Set(folders)].filter(folder =>
    fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory(),
  )
}
