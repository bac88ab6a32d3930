DROP TABLE modules;
DROP TABLE module_names;
DROP TABLE module_blobs;
